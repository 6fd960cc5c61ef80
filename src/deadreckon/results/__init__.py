"""Results as frozen, versioned records: what verbs return, what ``--json`` prints, what the JSON Schema describes."""
