"""The vocabulary of Muelle: tensors, signatures, requests, errors. Imports nothing else of ours."""
