"""Where pictures come from: the HTTP clients of recorders, what a whole picture looks like, and the files on disk."""
