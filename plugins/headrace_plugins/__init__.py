"""Observers that other systems load by entry point. They look, and never change the state of anything."""
