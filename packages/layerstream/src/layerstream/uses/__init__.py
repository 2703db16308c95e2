"""Uses of a streamed model: batched generation and shared-prefix scoring, two strategies over one runner."""
