// One question to edged over its unix socket, and the answer. Each has a connection of its own: nobody waits for others.

#pragma once

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

namespace edged {
namespace {

constexpr time_t kAnswerSeconds = 15;  // edged may have to ask the DNS
constexpr size_t kQuestion = 16 * 1024;

std::string setting(const char *name) {
    const char *value = std::getenv(name);
    return value ? value : "";
}

// From the environment that edged gives the proxy, and nobody changes: connect() is called before any plug-in.
const std::string &socket_path() {
    static const std::string path = setting("EDGED_WAY_SOCKET");
    return path;
}

const std::string &instance() {
    static const std::string name = setting("EDGED_WAY_INSTANCE");
    return name;
}

class Line {
public:
    Line() : fd_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {}
    ~Line() {
        if (fd_ >= 0) close(fd_);
    }
    Line(const Line &) = delete;
    Line &operator=(const Line &) = delete;

    bool opened() {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        if (fd_ < 0 || socket_path().empty() || socket_path().size() >= sizeof address.sun_path) return false;
        std::memcpy(address.sun_path, socket_path().c_str(), socket_path().size());
        const timeval limit{kAnswerSeconds, 0};
        setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
        return connect(fd_, reinterpret_cast<sockaddr *>(&address), sizeof address) == 0 &&
               sent("way " + instance());
    }

    bool sent(const std::string &packet) {
        return send(fd_, packet.data(), packet.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(packet.size());
    }

    std::string received() {
        std::string into(kQuestion, '\0');
        ssize_t count;
        do count = recv(fd_, &into[0], into.size(), 0);
        while (count < 0 && errno == EINTR);
        into.resize(count > 0 ? static_cast<size_t>(count) : 0);
        return into;
    }

private:
    const int fd_;
};

// edged's answer without its "ok"; false when it is anything else. Leaves errno alone.
bool asked(const std::string &question, std::string &answer) {
    const int kept = errno;
    Line line;
    const std::string said = question.size() < kQuestion && line.opened() && line.sent(question) ? line.received() : "";
    errno = kept;
    if (said != "ok" && said.compare(0, 3, "ok ") != 0) return false;
    answer = said.size() > 3 ? said.substr(3) : "";
    return true;
}

bool allowed(const std::string &question) {
    std::string unused;
    return asked(question, unused);
}

}  // namespace
}  // namespace edged
