// The demo's C++ participant: joins the call, prints what it sees as JSON lines, leaves when its
// input ends. Of media keys it prints fingerprints only.
//
//   participant HOMESERVER_URL ACCESS_TOKEN ROOM_ID JOIN_PARAMS
#include <future>
#include <iostream>
#include <limits>
#include <matrixrtc.hpp>

// The event without the media key, which is base64, that some have.
static std::string shown(std::string json) {
  if (const auto begin = json.find(R"("key":")"); begin != json.npos)
    json.erase(begin, json.find(R"(",)", begin) + 2 - begin);
  return json;
}

int main(int argc, char **argv) {
  if (argc != 5) {
    std::cerr << "usage: " << argv[0] << " HOMESERVER_URL ACCESS_TOKEN ROOM_ID JOIN_PARAMS\n";
    return 2;
  }
  try {
    std::promise<void> left; // outlives the listener that fulfils it
    matrixrtc::Client client(std::string(R"({"homeserver_url": ")") + argv[1] + R"(", "access_token": ")" + argv[2] +
                             R"("})");
    auto session = client.open(argv[3]);
    auto reporter = session.on_any([&left](const matrixrtc::Event &event) {
      std::cout << shown(std::string(event.json)) << std::endl;
      if (event.name == "left")
        left.set_value();
    });
    client.start(); // now: so who is there already is told as well
    session.join(argv[4]);
    std::cin.ignore(std::numeric_limits<std::streamsize>::max());
    session.leave();
    const bool told = left.get_future().wait_for(std::chrono::seconds(10)) == std::future_status::ready;
    client.stop_wait(std::chrono::seconds(5));
    return told ? 0 : 1;
  } catch (const matrixrtc::Error &error) {
    std::cerr << error.name() << ": " << error.what() << "\n";
    return 1;
  }
}
