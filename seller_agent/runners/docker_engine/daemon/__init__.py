"""Docker and the machine under it, without the SDK: where it is, how it is asked, and what clocks and process table tell."""
