"""Other forms of the answers: lines of JSON, and the files that vLLM and SGLang read."""
