"""Uploads and imports of bytes, and their verification."""
