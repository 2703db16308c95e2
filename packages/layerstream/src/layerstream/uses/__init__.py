"""Uses of a streamed model: batches of generations and shared-prefix scoring, two strategies over one runner."""
