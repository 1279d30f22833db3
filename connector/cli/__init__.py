"""The command line. One module a topic; `main` assembles them."""
