// The demo's C++ participant: joins the call, prints what it sees as JSON lines, leaves when its
// input ends.
//
//   participant HOMESERVER_URL ACCESS_TOKEN ROOM_ID JOIN_PARAMS
#include <future>
#include <iostream>
#include <limits>
#include <matrixrtc.hpp>

int main(int argc, char **argv) {
  if (argc != 5) {
    std::cerr << "usage: " << argv[0] << " HOMESERVER_URL ACCESS_TOKEN ROOM_ID JOIN_PARAMS\n";
    return 2;
  }
  try {
    std::promise<void> left; // outlives the listener that fulfils it
    matrixrtc::Client client(std::string(R"({"homeserver_url": ")") + argv[1] + R"(", "access_token": ")" + argv[2] +
                             R"("})");
    client.start();
    auto session = client.open(argv[3]);
    auto reporter = session.on_any([&left](const matrixrtc::Event &event) {
      std::cout << event.json << std::endl;
      if (event.name == "left")
        left.set_value();
    });
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
