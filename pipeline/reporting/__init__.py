"""What a page of the project is made of: tables, figures, contact sheets, and the templates that hold them."""
