"""From a listing to committed rows: select, plan, fetch, decode, transcribe, tokenize, commit."""
