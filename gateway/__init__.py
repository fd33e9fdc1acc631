"""chekt-gateway: alarms published over MQTT at a site, delivered to the CHeKT cloud without losing one."""
