"""Retrieval: chunks, indexes, searches, better orders, answers with citations."""
