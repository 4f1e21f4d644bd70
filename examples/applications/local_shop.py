"""A small shop on the loopback interface, for `web_automation.py`: a catalogue over several pages, a cart, an order form."""

import random
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KINDS = ["lamp", "chair", "rug", "clock", "mirror", "shelf", "vase", "desk"]
BRANDS = ["Alder", "Birch", "Cedar", "Elm", "Fir", "Hazel"]
PRICES = {(kind, brand): random.Random(f"{kind} {brand}").randrange(10, 400) for kind in KINDS for brand in BRANDS}
CATALOGUE = random.Random(0).sample(sorted(PRICES), len(PRICES))
PER_PAGE = 8
PAGES = len(CATALOGUE) // PER_PAGE
CARTS: dict[str, list] = {}
ORDERS: dict[str, list] = {}


class Site(BaseHTTPRequestHandler):
    """The web site. A session is part of the address."""

    def do_GET(self):
        session, page, *rest = self.path.strip("/").split("/")
        cart = CARTS.setdefault(session, [])
        if page == "page":
            number = int(rest[0])
            offers = [(f"{brand} {kind}", place) for place, (kind, brand) in enumerate(CATALOGUE)]
            shown = offers[PER_PAGE * (number - 1) : PER_PAGE * number]
            body = f"<h1>Catalogue, page {number} of {PAGES}</h1>"
            body += "".join(f"<p><a href='/{session}/offer/{place}'>{name}</a></p>" for name, place in shown)
            if number < PAGES:
                body += f"<a href='/{session}/page/{number + 1}'>Next page</a>"
        elif page == "offer":
            kind, brand = CATALOGUE[int(rest[0])]
            body = f"<h1>{brand} {kind}</h1><p>Price: {PRICES[kind, brand]} euros</p>"
            body += f"<a href='/{session}/add/{rest[0]}'>Add to cart</a><a href='/{session}/page/1'>Catalogue</a>"
        else:
            if page == "add":
                cart.append(CATALOGUE[int(rest[0])])
            body = f"<h1>Cart: {', '.join(f'{brand} {kind}' for kind, brand in cart) or 'empty'}</h1>"
            body += (
                f"<a href='/{session}/page/1'>Catalogue</a><form action='/{session}/order'><input name='name'></form>"
            )
        self.reply(body)

    def do_POST(self):
        session = self.path.strip("/").split("/")[0]
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if form.get("name"):
            ORDERS[session] = list(CARTS.get(session, []))
        self.reply("<h1>Thank you for your order</h1>" if form.get("name") else "<h1>Please give your name</h1>")

    def reply(self, body):
        content = f"<html><body>{body}</body></html>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def serve():
    """Start the site; returns its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"
