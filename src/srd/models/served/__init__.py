"""Models behind a server: asked over HTTP, never loaded here."""
