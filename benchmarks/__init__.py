"""How fast is it? Workloads with a known answer, run through the public API."""
