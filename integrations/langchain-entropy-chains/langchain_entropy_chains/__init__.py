"""LangChain integration of entropy-chains, in preparation: it offers nothing yet."""
