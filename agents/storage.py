"""Storable."""
class Storable: pass
