"""OpenAI's chat API as it goes over the wire: requests read, answers written, and an HTTP server around both."""
