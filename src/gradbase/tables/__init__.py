"""Models that read tables and write tables: crowdsourced truth, knowledge fusion, matching of records."""
