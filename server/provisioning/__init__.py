"""From a name and a list of sites to one bundle a party: keys, certificates, the signed roster."""
