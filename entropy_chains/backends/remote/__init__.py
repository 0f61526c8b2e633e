"""Conversation with OpenAI-compatible servers."""
