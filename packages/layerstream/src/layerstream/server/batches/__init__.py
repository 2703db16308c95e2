"""OpenAI's files and batches: work that is accepted once is answered once, whatever happens to the server."""
