"""Models behind an OpenAI-compatible endpoint, as policies of the host-side loop."""
