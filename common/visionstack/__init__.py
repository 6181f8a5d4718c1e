"""What the services of the Vision Stack share; every module here is used by at least two of them.

Importing the package imports nothing else: the gateway must not pay for torch, a test not for a server.
"""

__version__ = "0.1.0"
