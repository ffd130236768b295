/* A Modbus server with libmodbus: register n of either kind holds n * 40503 + 12345, in 16 bits.
   server tcp PORT UNIT | server rtu DEVICE UNIT; prints a line when it listens. */
#include <modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    int tcp = argc == 4 && !strcmp(argv[1], "tcp"), listener = -1, length;
    uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
    modbus_t *line = tcp ? modbus_new_tcp("127.0.0.1", atoi(argv[2])) : modbus_new_rtu(argv[2], 9600, 'N', 8, 1);
    modbus_mapping_t *map = modbus_mapping_new(0, 0, 0x200, 0x200);

    for (int n = 0; n < 0x200; n++)
        map->tab_registers[n] = map->tab_input_registers[n] = (uint16_t)(n * 40503 + 12345);
    modbus_set_slave(line, atoi(argv[3]));
    if (tcp ? (listener = modbus_tcp_listen(line, 1)) < 0 : modbus_connect(line) < 0)
        return perror("libmodbus"), 1;
    puts("listening"), fflush(stdout);
    for (;;) {
        if (tcp && modbus_tcp_accept(line, &listener) < 0)
            return 1;
        while ((length = modbus_receive(line, query)) >= 0 || !tcp)
            if (length > 0)
                modbus_reply(line, query, length, map);
    }
}
