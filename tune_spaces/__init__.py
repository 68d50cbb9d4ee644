"""Search the trade-offs: profile variants, measure deployments, choose a plan, report. May import every package."""
