"""Images: whose logins, one pull for all who want it, what is warm, what may be deleted."""
