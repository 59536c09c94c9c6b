"""MSBReg, reproduced: every table of the paper as code."""

__version__ = "0.1.0"
