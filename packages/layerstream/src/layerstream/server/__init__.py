"""OpenAI's HTTP interface to one streamed model; needs the extra `serve`."""
