"""The network of jobs that may reach the internet, its firewall, and the proof from inside."""
