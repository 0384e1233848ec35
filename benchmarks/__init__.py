"""Benchmarks: one file per question, each a table for people and JSON for programs."""
