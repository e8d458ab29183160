"""Jobs as plain processes of another machine, reached by SSH."""
