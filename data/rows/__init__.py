"""Rows of any table or folder, made into prompts."""
