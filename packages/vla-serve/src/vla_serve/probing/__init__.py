"""Made-up observations against a live server."""
