"""From what a user names (files, folders, globs, addresses) to rows that say where they came from."""
