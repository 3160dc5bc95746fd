"""The httpx that is there: where a copy has moved on to its successor, only that may be."""

try:
    import httpx
except ModuleNotFoundError:
    import httpx2 as httpx

__all__ = ["httpx"]
