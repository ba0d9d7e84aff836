"""What each container must look like to be whole."""
