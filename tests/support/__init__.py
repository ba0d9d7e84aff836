"""What tests share: servers, corpora, checkpoints, processes that are killed."""
