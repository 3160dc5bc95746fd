"""The installed httpx: if a copy has moved to its successor, only that may be installed."""

try:
    import httpx
except ModuleNotFoundError:
    import httpx2 as httpx

__all__ = ["httpx"]
