"""HTTP beyond the routes: problems, authentication, streams, the OpenAPI document and the pages for browsers."""
