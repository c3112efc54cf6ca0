"""The page in the browser: annotate images, play an environment, watch an agent, rate masks. Extra `web`."""
