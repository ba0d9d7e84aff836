"""Voice activity, speaker changes, and the segmentation of recordings into utterances."""
