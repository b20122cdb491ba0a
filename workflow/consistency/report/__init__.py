"""What readers see: tables, figures and interactive pages."""
