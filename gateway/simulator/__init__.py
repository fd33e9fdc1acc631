"""A CHeKT cloud to practise against, and a site that raises alarms.

One simulator for the demo, the tests and installers who practise. It shares no code with the gateway: what it checks,
it checks from the documents (CHeKT Event API v0.8, RFC 7523, AWS Signature Version 4, Frigate's documentation), so that
an error of the gateway is not an error of the simulator too.
"""
