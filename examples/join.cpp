// Joins the call of a room, prints who comes and goes, leaves when a line is read or input ends.
//
//   c++ -std=c++17 examples/join.cpp -Iinclude -Lbuild -lmatrixrtc -o join && ./join URL TOKEN ROOM
#include <iostream>
#include <matrixrtc.hpp>

int main(int argc, char **argv) {
  if (argc != 4) {
    std::cerr << "usage: " << argv[0] << " HOMESERVER_URL ACCESS_TOKEN ROOM_ID\n";
    return 2;
  }
  try {
    matrixrtc::Client client(std::string(R"({"homeserver_url": ")") + argv[1] + R"(", "access_token": ")" + argv[2] +
                             R"("})");
    client.start();
    auto session = client.open(argv[3]);
    auto printer = session.on_any([](const matrixrtc::Event &event) { std::cout << event.json << std::endl; });
    session.join(R"({"foci_preferred": [{"type": "livekit", "livekit_service_url": "https://sfu.example.org"}]})");
    std::string line;
    std::getline(std::cin, line);
    std::cout << session.leave_wait(std::chrono::seconds(5)) << std::endl;
    client.stop_wait(std::chrono::seconds(5)); // nothing of it runs when the process ends
  } catch (const matrixrtc::Error &error) {
    std::cerr << error.name() << ": " << error.what() << "\n";
    return 1;
  }
}
