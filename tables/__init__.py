"""The paper's tables. Each file is one table and one task, found by its name."""
