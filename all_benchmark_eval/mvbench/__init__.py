"""MVBench: twenty tasks of multiple choice about short videos."""
