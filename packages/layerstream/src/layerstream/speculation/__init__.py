"""Speculation: a draft proposes tokens, one sweep of the streamed model verifies them all."""
