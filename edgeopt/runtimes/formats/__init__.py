"""Files that runtimes read: how they are written, and what their graphs say."""
