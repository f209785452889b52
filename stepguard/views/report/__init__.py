"""The post-mortem of runs, in the terminal, as Markdown, as one HTML file and as JSON: four pictures of one thing."""
